"""What only a process of its own can show: how much memory streaming takes, and that SIGKILL changes nothing.

Run as a program (`python tests/test_stream.py memory|kill folder`) this file is the process that is measured or killed.
It imports everything once and forks, so that ten kills do not cost ten imports."""
import hashlib, json, os, random, resource, signal, subprocess, sys, time
from pathlib import Path

BLOCKS, WIDTH, BATCH = 28, 512, (2,64)
SIZES = dict(vocab_size=512, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=BLOCKS,
             num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=128, tie_word_embeddings=True)

def in_a_fork(work, out, warm=lambda: None): # peak of memory while `work` runs, in MB above what was there before
    pid = os.fork()
    if pid==0:
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
        warm(); before = peak(); work(); out.write_text(json.dumps(peak()-before)); os._exit(0)
    assert os.waitpid(pid, 0)[1]==0
    return json.loads(out.read_text())

def random_model(folder): # written shard after shard: the model is never in memory
    import torch
    from transformers import LlamaConfig
    from safetensors.torch import save_file
    g, index, one = torch.Generator().manual_seed(0), {}, torch.ones(WIDTH).bfloat16()
    def normal(*s): return torch.randn(*s, generator=g).mul_(.02).bfloat16()
    def put(name, tensors): save_file(tensors, folder/name); index.update(dict.fromkeys(tensors, name))
    folder.mkdir(); LlamaConfig(**SIZES).save_pretrained(folder)
    for k in range(BLOCKS):
        names = [*(f'self_attn.{n}_proj' for n in 'qkvo'), *(f'mlp.{n}_proj' for n in ('gate','up','down'))]
        block = {f'model.layers.{k}.{n}.weight':normal(WIDTH,WIDTH) for n in names}
        norms = {f'model.layers.{k}.{n}_layernorm.weight':one.clone() for n in ('input','post_attention')}
        put(f'model-{k:02d}.safetensors', block | norms)
    put('model-outside.safetensors', {'model.embed_tokens.weight':normal(512,WIDTH), 'model.norm.weight':one})
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=index)))

def tokens(vocabulary, shape, n):
    import torch
    return [torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(k)) for k in range(n)]

def memory(folder):
    import torch
    from transformers import LlamaForCausalLM
    from quantlab.core.stream import stream
    from quantlab.core.testbed import tiny_llama
    from quantlab.formats.int import Int
    from quantlab.ptq.rtn import RTN
    source, batches = folder/'source', tokens(512, BATCH, 4)
    tiny, few = folder/'tiny', tokens(97, (1,4), 1)
    in_a_fork(lambda: random_model(source), folder/'made')
    in_a_fork(lambda: tiny_llama().save_pretrained(tiny), folder/'made')
    def run(source, out, batches): return lambda: stream(source, out, batches, RTN(Int(4,16,1)))
    warm = run(tiny, folder/'warm', few) # code that is loaded on first use is not what is measured
    streamed = in_a_fork(run(source, folder/'out', batches), folder/'streamed', warm)
    whole = in_a_fork(lambda: LlamaForCausalLM.from_pretrained(source, dtype=torch.float32), folder/'whole')
    print(json.dumps(dict(streamed=streamed, whole=whole)))

def shas(folder): return {p.name:hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}

def kill(folder): # ten kills at random moments; a run that was faster than its killer does not count
    import torch
    from quantlab.core.stream import stream
    from quantlab.core.testbed import tiny_llama
    from quantlab.formats.int import Int
    from quantlab.ptq.gptq import GPTQ
    source, batches = folder/'source', tokens(97, (2,20), 2)
    tiny_llama(num_hidden_layers=6).save_pretrained(source, max_shard_size='30KB')
    def work(out): stream(source, out, batches, GPTQ(Int(3,16)))
    start = time.time(); work(folder/'whole'); takes, want = time.time()-start, shas(folder/'whole')
    moments, rng, at = [], random.Random(0), 0
    while len(moments)<10:
        out, pid = folder/f'run {at}', os.fork()
        if pid==0: work(out); os._exit(0)
        time.sleep(rng.random()*takes*.8); os.kill(pid, signal.SIGKILL)
        died = os.waitpid(pid, 0)[1]==signal.SIGKILL
        if died: moments.append(len(list(out.glob('model-*'))) if out.exists() else 0)
        else: assert shas(out)==want, 'another result'; at += 1
    work(out); assert shas(out)==want, 'another result'
    print(json.dumps(dict(moments=moments, finished=at+1)))

def run(what, folder): # in a process of its own, without the shape checks of the other tests
    r = subprocess.run([sys.executable, __file__, what, folder], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return json.loads(r.stdout.splitlines()[-1])

def test_peak_memory(tmp_path):
    got, tokens = run('memory', tmp_path), 4*BATCH[0]*BATCH[1]
    block, grams = 7*WIDTH**2*4/2**20, 4*WIDTH**2*8/2**20 # MB: weights in 32 bits; 4 inputs in 64
    states, inside = 2*tokens*WIDTH*4/2**20, 16*tokens/4*WIDTH*4/2**20 # before and behind a block; within it, one batch
    constant = 64 # working memory of one layer's solver (20), heap that is free but was not returned
    allowed = 2*block+grams+states+inside+constant
    assert got['streamed']<allowed, f'{got["streamed"]:.0f} MB; {allowed:.0f} are allowed'
    assert got['whole']>1.5*allowed and BLOCKS*block>2*allowed, 'the model is too small for this to show anything'

def test_killed_ten_times(tmp_path):
    got = run('kill', tmp_path)
    assert len(got['moments'])==10 and max(got['moments'])>0, got

if __name__=='__main__':
    os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    dict(memory=memory, kill=kill)[sys.argv[1]](Path(sys.argv[2]))
