"""Batch jobs: a file of requests in, a file of answers out, resumable at any point.

The life of a job:

1. `survey` reads the input once: its fingerprint, its number of rows, and which lines repeat a custom_id.
2. `journal` opens the output, which is also the job's journal: it locks it, cuts a torn last line, and learns which
   rows are done. Every record's id names the input's fingerprint and the row's line, so no second file is needed.
3. `runner` reads the input again, skips what is done, and keeps a bounded number of rows with a `Sender`, which is a
   client of a running server (`http_sender`) or, later, the gateway itself.
4. `lines` turns input lines into requests and outcomes into records; `command` is all of it on the command line.
"""
