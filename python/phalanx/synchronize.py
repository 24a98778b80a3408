"""``multiprocessing.synchronize`` itself, under this package's name."""

import sys
from multiprocessing import synchronize
from multiprocessing.synchronize import *  # noqa: F403

sys.modules[__name__] = synchronize
