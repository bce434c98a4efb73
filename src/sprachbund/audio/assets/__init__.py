"""Files shipped with the audio package; README.txt says where each comes from and under which licence."""
