"""Version 1 of the wire: ``policy_pb2`` and ``policy_pb2_grpc``, generated from policy.proto."""
