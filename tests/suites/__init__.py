"""The suites of others: critest, Kubernetes' e2e_node and e2e, from programs that the caller has built.

``images`` makes the images that they name, ``run`` runs one of them over a runtime of its own. See docs/conformance.md.
"""
