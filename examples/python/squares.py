import phalanx as multiprocessing


def worker_function(number):
    return number * number


if __name__ == "__main__":
    with multiprocessing.Pool(processes=3) as pool:
        numbers = [1, 2, 3, 4, 5]
        results = pool.map(worker_function, numbers)
    print("Results:", results)
