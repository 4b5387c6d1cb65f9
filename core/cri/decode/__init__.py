"""From messages to values, with every check that the wire leaves out and the API demands.

``checks.check_message`` has looked at a request as a whole before any of these functions see it: text without NUL, enum
numbers that exist. What is wrong is raised as InvalidArgument and names the field by its path in the request.
"""
