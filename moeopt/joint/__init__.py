"""``joint`` by layers: layer functions of the replica count, a knapsack, and plans from them."""
