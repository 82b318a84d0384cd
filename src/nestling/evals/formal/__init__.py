"""Formal languages and word problems: which models can keep track of a state, and at lengths they never saw?"""
