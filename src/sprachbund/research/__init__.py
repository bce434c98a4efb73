"""The five published systems beside their baselines. Nothing but the command line imports this."""
