// First questions, of the kind that the shipped model has learnt. The drawings are this project's own (NOTICE).

export interface Sample {
  readonly question: string;
  /** Of a file in samples/. */
  readonly picture?: string;
  readonly alt?: string;
}

export const pictures: readonly Sample[] = [
  { picture: "cat", alt: "an orange cat's face", question: "What is this?" },
  { picture: "stars", alt: "three yellow stars", question: "How many stars are there?" },
  { picture: "flag", alt: "a white flag with a red disc", question: "Which country's flag is this?" },
  { picture: "apple", alt: "a red apple", question: "What colour is it?" },
  { picture: "fish", alt: "a blue fish", question: "What do you see?" },
  { picture: "umbrella", alt: "a purple umbrella", question: "What is in the picture?" },
];

export const questions: readonly Sample[] = [
  { question: "What is the capital of France?" },
  { question: "Is a dog an animal?" },
  { question: "Tell me a short story about a fox." },
  { question: "What is the opposite of cold?" },
];
