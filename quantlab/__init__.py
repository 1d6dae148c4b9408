"""A notebook-first literate workbench for neural-network quantization

Modules:

- `quantlab.bench.evaluate`: What quantization did to a language model, under a protocol that travels with every number.
- `quantlab.bench.train_llama`: Train the small language model that the other notebooks quantize, on text found on the machine and generated skills.
- `quantlab.core.alloc`: Every unit of a model picks one of a few widths; together they must fit a budget and cost as little as possible.
- `quantlab.core.checkpoint`: A quantized model as a folder: its configuration, its tokenizer, and one file in which every code has its stored width.
- `quantlab.core.codec`: The contract of a number format: fit parameters to rows, code numbers, give values back, store.
- `quantlab.core.contract`: What a number format and a weight solver promise, as checks that any registered method must pass and broken ones must fail.
- `quantlab.core.grid`: Cut a tensor into groups that share a scale, round through a step that has no slope, and store codes of any width without a wasted bit.
- `quantlab.core.linalg`: Hadamard transforms, weighted clustering, low-rank factors in the metric of the inputs, and outliers planted on purpose.
- `quantlab.core.method`: A technique registers itself in one line, and from then on it is found, listed, and held to the promises of its kind.
- `quantlab.core.pipe`: A model goes in, a list of steps is applied to a copy of it, a quantized model comes out.
- `quantlab.core.plot`: One size, one set of colours, one way to show a table, so that a reader compares methods and not styles.
- `quantlab.core.qtensor`: A tensor in coded form: everything needed to rebuild it, with every stored bit counted, and nothing else.
- `quantlab.core.settings`: One file at the top of the checkout says where the data are and how large a calibration or an evaluation is.
- `quantlab.core.site`: Places in a network where an invertible map and its inverse cancel, so that weights change and the function does not.
- `quantlab.core.stats`: What calibration remembers of a layer's inputs: their second moments, and nothing whose size grows with the data.
- `quantlab.core.testbed`: A small language model that ships with the checkout, the text it never saw, and skills whose answers are known by construction.
- `quantlab.core.walk`: Visit a model block by block, each layer with the statistics of the inputs it will really see, everything upstream already quantized.
- `quantlab.formats.int`: Uniform integer codes with a 16-bit scale per group, symmetric or with a zero point, ranges searched.
- `quantlab.ptq.gptq`: Round the weights one column after another, and let the columns that are still free pay for what each rounding lost.
- `quantlab.ptq.rtn`: Give every weight the nearest level of its group's grid, and look at nothing else.
- `quantlab.recipes.cli`: One program with a verb for each thing a user does; bad input is one clear line and exit code 2.
- `quantlab.recipes.main`: Quantize a language model by several methods at several widths, compare them at equal stored bits, save the best, load it back and let it write.
- `quantlab.recipes.new`: Copy the template of a method notebook into its room, under the next free number and its own name.
- `quantlab.recipes.report`: One HTML file that holds the table, the figures and the per-layer errors of a run, and needs nothing else to be read."""

__version__ = "0.1.0"
