#include "fp32_tier.cpp"
