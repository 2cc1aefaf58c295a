"""Why a batch job cannot start or go on. A row's own failure is never one of these: it is a record of the output.

BatchError
├── InputUnusable       the input is not there, not a regular file, or changed while it was read
├── OutputUnusable      the output is another job's, in use by another run, damaged, or not a regular file
├── OutputUnwritable    a record could not be written (disk full, quota)
├── ServerRefused       the server answers, but not as a server of this API that would let us in
└── ServerGone          no useful answer for longer than the policy's patience
"""


class BatchError(Exception):
    """The job stops; what is done is in the output, and the same command resumes. The message is for the user."""


class InputUnusable(BatchError):
    """The input file can't be read as a whole, unchanging file."""


class OutputUnusable(BatchError):
    """The output file isn't this job's to append to."""


class OutputUnwritable(BatchError):
    """Writing a record failed."""


class ServerRefused(BatchError):
    """The server's answer shows that no row could succeed (wrong address, wrong key)."""


class ServerGone(BatchError):
    """The server has not answered for longer than the policy's patience."""
