"""Executes PTX on the CPU: parser, instruction table, two engines, asynchronous units, and checks that watch."""
