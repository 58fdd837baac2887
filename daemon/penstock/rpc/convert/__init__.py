"""Between the contract and core, by noun: the only package that knows both, each direction a plain function.

`..._in` takes a message that has passed `penstock.rpc.validate`; `..._out` makes a fresh message. No I/O, no
judgement.
"""
