"""Every registered method keeps the promises of its kind."""
import pytest
from quantlab.core.method import checks, methods

ALL = methods()
CASES = [pytest.param(c, id=f'{m.name}-{c.__name__}') for m in ALL.values() for c in checks(m, ALL)]

@pytest.mark.parametrize('check', CASES)
def test_contract(check): check()
