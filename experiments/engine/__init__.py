"""What every kind of experiment shares, and which knows none of them.

``formats`` reads and writes files of arrays, as other programs leave them.
"""
