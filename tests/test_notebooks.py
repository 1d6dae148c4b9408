"""Every notebook runs from top to bottom, within its limits, and runs every statement that it exports."""
import pytest
import nbrun
from quantlab.core.settings import settings

NBS = nbrun.ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(NBS).parts))
CASES = [pytest.param(p, id=str(p.relative_to(NBS).with_suffix(''))) for p in NOTEBOOKS]

@pytest.fixture(scope='session')
def alone(slots): slots.release() # the other tests are done

@pytest.mark.parametrize('path', CASES)
def test_notebook(path, runs, alone):
    bad = nbrun.faults(runs[path].result(), settings().notebook_seconds)
    if bad: pytest.fail('\n'.join(bad), pytrace=False)
