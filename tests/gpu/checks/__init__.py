"""The checks, family by family, as the C headers are divided."""

import importlib
import os


def load():
    """Imports every file beside this one: each registers its checks."""
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in sorted(os.listdir(folder)):
        if name.endswith('.py') and not name.startswith('_'):
            importlib.import_module('checks.' + name[:-3])
