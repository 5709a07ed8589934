"""
Broken inputs by the thousand: `python -m tests.fuzz --cases 10000`. Each is made from a seed, and ends in an answer or
in the project's own error that names it: soon, in little memory, and with nothing written outside its folder.
"""
