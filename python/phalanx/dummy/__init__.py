"""``multiprocessing.dummy`` itself, under this package's name."""

import sys
from multiprocessing import dummy
from multiprocessing.dummy import *  # noqa: F403
from multiprocessing.dummy import connection

sys.modules[__name__] = dummy
# Else it would be searched for in that package's folder, and loaded a second time.
sys.modules[f"{__name__}.connection"] = connection
