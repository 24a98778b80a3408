import phalanx as multiprocessing


def worker_function():
    print("Worker process started")
    print("Hello from the worker process!")


if __name__ == "__main__":
    worker_process = multiprocessing.Process(target=worker_function)
    worker_process.start()
    worker_process.join()
    print("Main process finished")
