"""How well the method keeps a subject and follows a prompt: metrics, runs over cases, tables.

evaluate  subjects x prompts x settings x seeds
metrics   the paper's metrics by networks of torch
scores    means and confidence intervals, as tables
"""
