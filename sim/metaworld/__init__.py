"""Meta-World's tasks (Yu et al., arXiv 1910.10897) behind the same controller as ours.

Scenes, scripted experts and success are Meta-World's, of version 3.1.1; cameras, actions and time
are made to fit a ``Robot`` (``robot.py``).
"""
