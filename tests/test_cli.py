"The command line as a user meets it: in a process of its own, with bad input and damaged models"
import json, os, subprocess, sys
import pytest, torch
from quantlab.core import llama, load_model, pipe, quantize, save_model, tiny_llama
from quantlab.formats.int import SymInt
from quantlab.ptq.rtn import RTN

def quantlab(*args, cwd):
    "Run the installed program; its exit code, standard output and standard error"
    code = 'import sys; from quantlab.recipes.cli import main; sys.exit(main())'
    env = {**os.environ, 'HF_HUB_OFFLINE':'1'}
    command = [sys.executable, '-c', code, *args]
    p = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return p.returncode, p.stdout, p.stderr

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Folders of small models that transformers wrote: a good one, and ones that are broken in one way each"
    root = tmp_path_factory.mktemp('models')
    _, tok = llama()
    good = tiny_llama(vocab_size=4096, max_position_embeddings=1024)
    def wrote(name, model=good):
        model.save_pretrained(root/name); tok.save_pretrained(root/name)
        return root/name/'model.safetensors'
    wrote('good')
    f = wrote('cut'); f.write_bytes(f.read_bytes()[:-100])
    f = wrote('text'); f.write_text('this is not a checkpoint')
    sick = tiny_llama(vocab_size=4096, max_position_embeddings=1024)
    sick.model.layers[1].mlp.down_proj.weight.data[3,5] = float('nan')
    wrote('nan', sick)
    wrote('empty').unlink()
    return root

BAD = {
    'unknown verb': (['fly'], "no verb 'fly'"),
    'unknown method': (['run','--methods','rtn magic'], "method 'magic' is not a registered solver"),
    'missing folder': (['run','--model','nowhere'], "model='nowhere': no such folder"),
    'cut file': (['run','--model','{cut}'], 'cannot be loaded'),
    'not a checkpoint': (['run','--model','{text}'], 'cannot be loaded'),
    'no weights': (['run','--model','{empty}'], 'cannot be loaded'),
    'group': (['run','--model','{good}','--group','20'],
              'group=20 does not divide the 32 input columns; use one of [1, 2, 4'),
    'width': (['run','--model','{good}','--group','16','--bits','9'], 'bits=9; an integer grid has 2 to 8 bits'),
    'not a number': (['run','--bits','four'], "bits='four'"),
    'nan weights': (['run','--model','{nan}','--group','16'],
                    'model.layers.1.mlp.down_proj.weight of shape (32, 48) holds 1 NaN'),
    'unknown option': (['run','--colour','red'], 'unrecognized arguments: --colour'),
    'unknown recipe': (['run','magic'], "recipe='magic' is unknown; use one of rotate-gptq"),
    'unknown format': (['export','{good}','--to','tar'], "to='tar' is no registered format; use one of awq_checkpoint"),
    'no format': (['export','{good}'], 'to=None is no registered format'),
    'nothing to export': (['export','nowhere','--to','gguf'], "model='nowhere': no such folder"),
    'cut file to export': (['export','{cut}','--to','gguf','--out','x.gguf'], 'cannot be loaded'),
    'refused by the format': (['export','{good}','--to','gptq-checkpoint','--out','x'], 'model has no quantized layer'),
    'unknown type of a format': (['export','{good}','--to','gguf','--out','x.gguf','--kind','Q9'],
                                 "is to be 'Q9'; types are Q4_0"),
    'onto itself': (['export','{good}','--to','safetensors','--out','{good}'], 'is the model itself; give --out'),
    'saved model missing': (['complete','nowhere','import'], 'nowhere'),
}

@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, models, tmp_path):
    args, says = BAD[case]
    args = [a.format(**{p.name:p for p in models.iterdir()}) for a in args]
    small = ['--tokens','1024','--items','0','--calib','1','--out','result'] if args[0]=='run' else []
    code, out, err = quantlab(*args, *small, cwd=tmp_path)
    lines = [l for l in err.splitlines() if not l.endswith('measuring the float model')]
    assert code==2 and says in err, err
    assert len(lines)==1 and lines[0].startswith('quantlab: '), err
    assert not list(tmp_path.iterdir()), 'something was written'

def test_run_on_a_local_folder_and_eval_of_its_result(models, tmp_path):
    length = ['--tokens','1024','--items','0']
    args = ['run','--model',str(models/'good'),'--group','16','--bits','4 3','--calib','1','--out','result',*length]
    code, out, err = quantlab(*args, cwd=tmp_path)
    assert code==0, err
    rows = json.loads((tmp_path/'result'/'results.json').read_text())['rows']
    assert [(r['method'],r['bits']) for r in rows]==[('float',16),('rtn',4),('gptq',4),('rtn',3),('gptq',3)]
    assert rows[1]['bytes']==rows[2]['bytes']>rows[3]['bytes']
    cfg = json.loads((tmp_path/'result'/'model'/'config.json').read_text())
    assert cfg['quantization_config']['quant_method']=='quantlab' and 'no result/model.gguf: model.layers.0' in out
    page = (tmp_path/'result'/'report.html').read_text()
    assert 'http' not in page and '<script' not in page
    code, out, err = quantlab('eval','result/model','--reference',str(models/'good'),*length, cwd=tmp_path)
    best = min(rows[3:], key=lambda r: r['kl'])
    assert code==0 and f'{best["kl"]:.3g}' in out, err

def test_a_saved_model_as_other_formats(models, tmp_path):
    bed, x = tiny_llama(vocab_size=4096, intermediate_size=64), torch.arange(40)[None]
    save_model(pipe(bed, [x], quantize(RTN(SymInt(4,32)))), tmp_path/'small', llama()[1])
    for source,to,made in (('small','gguf','small.gguf'), ('small.gguf','gptq-checkpoint','small-gptq_checkpoint'),
                           ('small-gptq_checkpoint','hub','back')):
        code, out, err = quantlab('export', source, '--to', to, *(['--out','back'] if to=='hub' else []), cwd=tmp_path)
        assert code==0 and out.startswith(f'wrote {made}: ') and not err, err
    one, two = (load_model(tmp_path/n) for n in ('small','back'))
    assert torch.equal(one(x).logits, two(x).logits)

def test_help_does_not_wait_for_torch(tmp_path):
    code = 'import sys; from quantlab.recipes.cli import main; main(["--help"]); sys.exit("torch" in sys.modules)'
    p = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert p.returncode==0 and 'quantlab VERB' in p.stdout
