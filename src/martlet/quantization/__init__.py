"""What a quantised weight is: schemes and their bit layouts."""
