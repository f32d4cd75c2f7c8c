"""What a job will make and need, decided before anything is downloaded."""
