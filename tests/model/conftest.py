import torch
from tests.support import interpreter

interpreter.use_where_there_is_no_gpu()

# Matrices here are small: more threads only wait for one another, and much longer where the machine is busy.
torch.set_num_threads(1)
