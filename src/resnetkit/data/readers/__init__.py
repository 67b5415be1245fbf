"""Read a dataset from image folders, tables, CIFAR files, Arrow and Parquet. No torch."""
