from collections.abc import Iterator

import pytest
import torch
from tests.kernels import hopper
from tests.support import interpreter

interpreter.use_where_there_is_no_gpu()

# Matrices here are small: more threads only wait for one another, and much longer where the machine is busy.
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    hopper.end_compiler()
