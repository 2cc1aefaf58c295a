"""What a request's answer may look like: which headers, which bodies, how much reasoning.

A guide follows the tokens of one answer and says, before each draw, which tokens may come. It is a function of the
tokens alone: whoever goes on with an answer, after a preemption or on another worker, has the same guide.
"""
