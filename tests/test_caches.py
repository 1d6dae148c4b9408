"""Every registered cache in `generate`, on decoders that differ from the Llama of the contract."""
import pytest, torch
from transformers import AutoConfig, AutoModelForCausalLM
from quantlab.core import methods
from quantlab.kvcache.contract import model_checks

CACHES = [pytest.param(m, id=n) for n,m in methods().items() if m.kind=='cache']
SIZES = dict(hidden_size=256, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, head_dim=64,
             vocab_size=97, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=0)
# heads of keys for four of queries: no sharing; biases; normed queries and keys; capped logits and a sliding window
FAMILIES = dict(llama=4, qwen2=2, qwen3=2, gemma2=2)

@pytest.fixture(scope='module', params=FAMILIES)
def bed(request):
    config = AutoConfig.for_model(request.param, architectures=[], **SIZES, num_key_value_heads=FAMILIES[request.param])
    with torch.random.fork_rng(): torch.manual_seed(0); return AutoModelForCausalLM.from_config(config).eval()

@pytest.mark.parametrize('m', CACHES)
def test_generate_is_decoding_token_by_token(bed, m):
    next(f for f in model_checks(m, bed) if f.__name__=='generate_is_decoding')()
