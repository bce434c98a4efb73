"""The types of arrays that go through the whole package."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
"""An array of any shape."""
Samples = NDArray[np.float32]
"""(num_samples,) of one channel at 16 kHz, between -1 and 1, unless it is said otherwise."""
