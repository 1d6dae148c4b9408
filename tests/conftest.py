"""Everything here must happen before torch, triton or quantlab is imported for the first time."""
import os, threading
os.environ.setdefault('TRITON_INTERPRET', '1') # kernels run in Triton's interpreter
os.environ.setdefault('OMP_NUM_THREADS', '1')  # sums have one order, and two notebooks share two cores
os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='agg')

from jaxtyping import install_import_hook
install_import_hook('quantlab', 'beartype.beartype') # annotations of shape and dtype are checked in every call

import nbrun, pytest, torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

def pytest_collection_modifyitems(items): # notebooks run beside the other tests, so their results are asked for last
    items.sort(key=lambda i: i.name.startswith('test_notebook['))

WORKERS = min(os.cpu_count() or 1, 8)

@pytest.fixture(scope='session')
def slots(): return threading.Semaphore(max(WORKERS-1,1)) # one core is left to the other tests as long as they run

@pytest.fixture(scope='session', autouse=True)
def runs(request, slots): # the notebooks of the selected tests, started before the first test; path -> future
    chosen = [i.callspec.params['path'] for i in request.session.items if i.name.startswith('test_notebook[')]
    pool, futures = nbrun.run_all(chosen, WORKERS, slots)
    yield futures
    pool.shutdown(cancel_futures=True)
