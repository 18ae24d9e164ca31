"""The numpy engine: the same table of instructions, one array operation after another, to hold the native one to."""
