"""May this run replace that one: rules, paired statistics, and a verdict that cannot pass silently."""
