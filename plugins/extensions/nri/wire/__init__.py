"""The wire format of NRI: its own messages in nri.proto, those of ttrpc in ttrpc.proto, and the stubs made from them.

Only crinoid.plugins.extensions.nri imports this; tools/generate_wire.py writes the stubs.
"""
