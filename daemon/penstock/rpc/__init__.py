"""gRPC servicers of the control API; convert.py alone knows both the protos and core."""
