"""Facts and rates of the machine that everything runs on."""
