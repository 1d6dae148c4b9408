"Loaded before the processes of notebooks are split off: transformers compiles its patterns at their first use."
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
get_checkpoint_conversion_mapping('llama')
