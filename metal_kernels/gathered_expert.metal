// Group `RV_GROUP.y` stands for an expert where there are fewer experts than pairs, else for a pair.
const int pairs = experts_shape[0], each = pairs / x_shape[0], slot = RV_GROUP.y;
const int expert = pairs > RV_EXPERTS ? slot : (int)experts[slot];
