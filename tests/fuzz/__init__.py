"""
Fuzz tests: `python -m tests.fuzz --cases 10000`. Every damaged input is generated from a seed. It must end soon, in a
result or in an error of the project that names the input, with little memory and nothing written outside its folder.
"""
