"""Speech that is still being spoken: policies that decide what may be written already, sessions, clocks."""
