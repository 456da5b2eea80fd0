"""The capacity planning review: which cards, how many of them, for how long, at what price, and how we know.

scenario   one question for the solver, and what came of it
executors  where scenarios run: this process, all cores, or a Dask cluster
quantities what people write: 15T tokens, 30d, 2.5 an hour
economics  days, GPU-hours and cost of a plan; the knee
plans      which scenarios answer the review's questions, round by round
review     the review of several models on several cards
"""
