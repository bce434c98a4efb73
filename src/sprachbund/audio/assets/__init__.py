"""Files shipped with the audio room; README.txt says where each comes from and under which licence."""
