"""Bodies of operators that are faster than their meaning; today the CPU library in cpp/."""
