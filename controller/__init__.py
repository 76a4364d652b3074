"""Onset's robot side: types, wire codec, timeline and the control loop.

Imports neither torch nor MuJoCo, so that a robot computer installs only numpy, gRPC and OpenCV.
"""
