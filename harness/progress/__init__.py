"""What a user sees while runs go on."""
