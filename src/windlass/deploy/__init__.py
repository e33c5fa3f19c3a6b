"""The way onto AWS: the function's zip, the stack, and the commands that make, watch and remove them.

Nothing here is deployed. `source` reads the user's code, `package` makes the zip, `settings` and `template` make the
stack's description from the declaration, `stack` brings it to CloudFormation, `status` looks at what runs, `cost` says
what it would cost.
"""
