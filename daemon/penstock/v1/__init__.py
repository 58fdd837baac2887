"""The contract in Python: generated from api/protos by `make proto`, never edited."""
