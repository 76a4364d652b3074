"""Image tokens that have not changed in a way that matters are not computed again.

Per robot session, with a bound on how old a reused token may be. ``encoder`` is the way in;
``prefix`` runs the model's layers over some of the rows; ``choice`` says which, by ``rules`` when
all of them, else by ``ranking``; ``store`` keeps what was computed within a budget of bytes.
"""
