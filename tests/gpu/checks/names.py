"""What the sanitizers run again exists."""

from harness import sanitizers
from harness.check import CHECKS, Failed, check


@check('harness')
def sanitized_checks_exist(c):
    del c
    names = [x.name for x in CHECKS if x.part == 'correctness']
    for word in sanitizers.CHECKS.split(','):
        if not any(word in name for name in names):
            raise Failed('harness/sanitizers.py: no check is called ' + word)
