"""Image tokens that have not changed in a way that matters are not computed again.

Per robot session, with a bound on how old a reused token may be. ``encoder`` is the way in;
``prefix`` runs the model's layers over some of the rows; ``selector`` says which; ``rules`` says
when all of them; ``store`` keeps what was computed within a budget of bytes.
"""
